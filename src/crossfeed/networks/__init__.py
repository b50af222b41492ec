"""Real networks: adapters behind one small protocol, their data and rewards, and how a round trains them."""
