"""The one state that every benchmark stores: an order in the middle of its life, 1 KiB encoded.

It has what such states have: classes inside classes, a few lists, money as `Decimal`, aware
datetimes, an enum, an optional field, free text, and a set.
"""

from __future__ import annotations

import enum
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from decimal import Decimal

from attrs import define

__all__ = ["SIZE", "Address", "Item", "Order", "Payment", "Step", "make_order"]

SIZE = 1024
"""Bytes of the encoded state, to within 2 %."""

_PLACED = datetime(2026, 11, 2, 9, 30, 15, 250_000, tzinfo=UTC)


class Payment(enum.Enum):
    """Where the money is."""

    OPEN = "open"
    RESERVED = "reserved"
    CAPTURED = "captured"


@define
class Item:
    """One line of an order."""

    sku: str
    title: str
    quantity: int
    price: Decimal


@define
class Address:
    """Where the parcels go."""

    name: str
    street: str
    city: str
    postcode: str
    country: str


@define
class Step:
    """Something that was done."""

    name: str
    at: datetime
    worker: str


@define
class Order:
    """The state of one order's flow."""

    customer_id: str
    placed_at: datetime
    address: Address
    items: list[Item]
    payment: Payment
    total: Decimal
    history: list[Step]
    tags: set[str]
    weight_kg: float
    note: str
    retries: int = 0
    voucher: str | None = None


def make_order() -> Order:
    """The state, as a new object; the same values each time."""
    titles = ("Desk lamp, brass", "Notebook A5, dotted", "Fountain pen, fine nib", "Ink, 50 ml")
    names = ("received", "checked", "reserved", "picked")
    items = [
        Item(f"SKU-{4711 + 13 * place}", title, place + 1, Decimal("19.90") + place)
        for place, title in enumerate(titles)
    ]
    return Order(
        customer_id="customer-0017734",
        placed_at=_PLACED,
        address=Address("Zoë Müller", "Lange Gasse 12/3", "Wien", "1080", "AT"),
        items=items,
        payment=Payment.RESERVED,
        total=sum((item.quantity * item.price for item in items), Decimal(0)),
        history=[
            Step(name, _PLACED + timedelta(seconds=41 * place), f"worker-{place}")
            for place, name in enumerate(names)
        ],
        tags={"gift", "express", "returning"},
        weight_kg=3.25,
        note="Ring twice; the neighbour at door 4 takes parcels when nobody opens before noon.",
    )
