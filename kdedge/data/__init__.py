"""Where samples come from: files, folders, the Hub and embedded sets, read into disjoint splits."""
