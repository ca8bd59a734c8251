"""Rankings of pictures by judges and people, and what follows from them."""
