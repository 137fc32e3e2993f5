"""What tuning finds, how long it takes, and the measurements that ship with the package."""
