"""What the stages learn from: readers, masks, degradations, and how examples become batches."""
