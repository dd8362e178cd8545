"""The rendered data set `shapes`: scenes, their captions, exact examples of tasks, and who judges pictures."""
