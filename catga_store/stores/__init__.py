"""The stores: each turns waist requests into conversations over wire requests of its own."""
