"""The order flow behind `catga-store demo`: example code, meant to be read.

| module | what it shows |
|---|---|
| `orders` | **start here**: the states, the steps of the flow and the worker, as an application has them |
| `worker` | the process that works until its standard input ends; it can be told where to die |
| `processes` | how the demo starts such processes and hears from them |
| `story` | what happens to one order, act by act |
| `verdict` | whether it came out right, from what was stored and what the workers said they wrote |
"""
