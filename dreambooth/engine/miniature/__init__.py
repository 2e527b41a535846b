"""The miniatures: small models, one a family, that know a small drawn world, so that teaching them is real and quick.

world.py       draws the world and says it in words
reading.py     reads pictures of it back
shapes.py      what sets each family's miniature apart
train.py       makes one: train_vae.py, then begin.py and train_unet.py, in workers.py's processes, then finish.py
measure.py     measures what a run has taught one
"""
