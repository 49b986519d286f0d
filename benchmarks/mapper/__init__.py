"""What `mappers` costs and gives: one module a figure of its own."""
