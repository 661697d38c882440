"""What ``fedspzo energy`` does: steps to be measured, and tables of joules."""
