"""What whoever exports can know in advance: bases of cores, from public examples, and an axis of the labels."""
