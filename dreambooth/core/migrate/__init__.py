"""Settings of other trainers as ours: pure functions from what their files say to ours, and a report of every key."""
