"""The rendered data set `shapes`: scenes, their captions, and who reads scenes back from pictures."""
