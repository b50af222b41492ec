"""Model families in closed form, what curators do to their outputs, and alignment."""
