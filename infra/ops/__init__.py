"""Where it runs: jobs, cluster, tracking, registry, serving."""
