"""Who writes modification texts and boxes, one file each."""
