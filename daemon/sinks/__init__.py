"""The shipper and its sinks."""
