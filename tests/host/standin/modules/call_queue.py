from modules import fifo_lock, progress

queue_lock = fifo_lock.FIFOLock()


def wrap_queued_call(func):
    def f(*args, **kwargs):
        with queue_lock:
            return func(*args, **kwargs)

    return f


def wrap_gradio_gpu_call(func):
    def f(id_task, *args):
        progress.pending_tasks[id_task] = 0.0
        with queue_lock:
            progress.pending_tasks.pop(id_task)
            try:
                return func(*args)
            finally:
                progress.finish_task(id_task)

    return f
