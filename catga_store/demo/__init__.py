"""The order flow of `catga-store demo`: example code to read and to copy from.

| module | what it shows |
|---|---|
| `orders` | **start here**: the states, the steps of the flow and the worker of an application |
| `worker` | a worker process; it runs until its standard input ends, and can be made to crash |
| `processes` | how the demo starts worker processes and reads their events |
| `story` | the five acts in the life of one order |
| `verdict` | the checks of the result, from the stored records and the events of the workers |
"""
