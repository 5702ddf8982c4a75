"""The tools that a run needs: Pulumi's engine, its language host, the provider plugins, the environment."""
