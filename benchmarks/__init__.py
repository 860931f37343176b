"""Commands that print a table and write JSON: what every figure in the README comes from."""
