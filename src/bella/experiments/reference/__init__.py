"""`bella reference`: every method's predictive beside a long No-U-Turn run on small problems."""
