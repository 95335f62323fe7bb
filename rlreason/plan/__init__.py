"""`rlreason plan`: what a recipe would do: its data, objective, memory, time and cost, before anything is built."""
