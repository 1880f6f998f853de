"""The first of the WeightDiffQA benchmark: readers side by side, with intervals and nulls."""
