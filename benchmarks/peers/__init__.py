"""Other engines and bevel side by side."""
