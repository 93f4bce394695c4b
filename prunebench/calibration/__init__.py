"""What goes in (samples), the one streaming pass (collect), and what comes out (trace)."""
