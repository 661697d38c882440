"""Privacy as the server's side sees it: what attacks on the messages find, and what the noise promises against them."""
