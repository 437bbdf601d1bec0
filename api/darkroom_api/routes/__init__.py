"""The routes of the HTTP contract, one module for each thing that they speak of."""
