"""Files and folders of all rooms: whole or not there, with digests, and what is read from strangers."""
