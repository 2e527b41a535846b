"""The miniature: a small Stable Diffusion 1 that knows a small drawn world, so that teaching it is real and quick.

world.py       draws the world and says it in words
reading.py     reads pictures of it back
train.py       makes the model: train_vae.py, then train_unet.py, in workers.py's processes
measure.py     measures what a run has taught it
"""
