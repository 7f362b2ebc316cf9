"""Relatives of AdaFisher, each checked against its authors' rule: Adam-like methods that read as second-order ones."""
