"""What public examples say of a model's weights: the bases that cores lie between."""
