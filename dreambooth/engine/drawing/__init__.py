"""Drawing pictures: for class pictures, previews and Generate alike."""
