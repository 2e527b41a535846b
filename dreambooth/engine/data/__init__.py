"""Pictures and captions: found, checked, cropped, encoded and put in order."""
