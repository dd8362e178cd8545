"""How the processes of a run share one model: whole in each of them (`replicas`), or in shards (`shards`)."""
