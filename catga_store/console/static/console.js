// Listens to server-sent events while the page is visible, and has htmx replace what has changed.
// Without this script every page is as it was when it was loaded.
"use strict";

(() => {
  const status = document.getElementById("live-status");
  let source = null;
  let isBusy = false;
  let isAsked = false;

  const live = () => document.getElementById("live");

  async function refresh() {
    if (document.hidden) return; // it is read again when it is seen again
    if (isBusy) {
      isAsked = true; // once more when this one is done
      return;
    }
    isBusy = true;
    try {
      await htmx.ajax("GET", location.pathname + location.search, {
        target: "#live",
        swap: "outerMorph",
        select: "#live",
      });
    } finally {
      isBusy = false;
      if (isAsked) {
        isAsked = false;
        refresh();
      }
    }
  }

  function open() {
    const section = live();
    if (source || !section?.dataset.events) return;
    source = new EventSource(section.dataset.events);
    source.addEventListener("look", refresh);
    source.addEventListener("changed", (event) => {
      const { version, status: now } = JSON.parse(event.data);
      status.textContent = `Changed: version ${version}, ${now}`;
      refresh();
    });
    source.addEventListener("trouble", (event) => {
      status.textContent = `The flow cannot be watched: ${JSON.parse(event.data).error}`;
    });
    source.addEventListener("error", () => {
      // The browser connects again by itself, unless it was refused.
      if (source?.readyState === EventSource.CLOSED) status.textContent = "Not live: reload the page";
    });
    source.addEventListener("open", () => document.documentElement.setAttribute("data-live", ""));
  }

  function close() {
    source?.close();
    source = null;
    document.documentElement.removeAttribute("data-live");
  }

  document.addEventListener("htmx:response:error", (event) => {
    const code = event.detail?.ctx?.response?.raw?.status;
    status.textContent = `The page could not be read again${code ? ` (HTTP ${code})` : ""}`;
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      close();
    } else {
      refresh().then(open); // what has happened meanwhile, then what happens next
    }
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", () => {
    if (!document.hidden) open();
  });
})();
