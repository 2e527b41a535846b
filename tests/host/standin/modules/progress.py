pending_tasks = {}
