"""The host side of a measurement: devices, the wire to them, what is set up there, and one run."""
