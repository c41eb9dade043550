"""Real data: anybody's folders and tables of images, and the demos' data sets."""
