pending_tasks = {}
finished_tasks = []


def finish_task(id_task):
    finished_tasks.append(id_task)
