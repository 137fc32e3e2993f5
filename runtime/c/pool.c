/* pool.c: workers sleep in the barrier between runs, so starting a run and finishing a step are the same operation. */
#include "pool.h"

/* How long a thread polls before it sleeps: about 20-60 us on the boards' cores, longer than most steps take, so a balanced run never
 * sleeps, and a thread whose core was taken away costs the others little. */
enum { SPINS = 4000 };

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

void bevel_pool_barrier(bevel_pool *pool)
{
    unsigned phase = atomic_load(&pool->phase);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 == pool->threads) {
        atomic_store(&pool->arrived, 0);
        /* The phase moves before the sleepers are counted, and a sleeper registers before it reads the phase: one of the two sees the
         * other (all four accesses are sequentially consistent). */
        atomic_store(&pool->phase, phase + 1);
        if (atomic_load(&pool->sleepers) != 0) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_broadcast(&pool->wake);
            pthread_mutex_unlock(&pool->mutex);
        }
        return;
    }
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->phase, memory_order_acquire) != phase)
            return;
        relax();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->phase) == phase)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *argument)
{
    bevel_worker *worker = argument;
    bevel_pool *pool = worker->pool;
    for (;;) {
        bevel_pool_barrier(pool);
        if (atomic_load(&pool->quit))
            return NULL;
        pool->work(pool->context, worker->thread);
    }
}

int bevel_pool_start(bevel_pool *pool, bevel_worker *workers, int threads, void (*work)(void *, int), void *context)
{
    pool->work = work;
    pool->context = context;
    pool->threads = threads;
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->phase, 0);
    atomic_init(&pool->sleepers, 0);
    atomic_init(&pool->quit, 0);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int t = 1; t < threads; t++) {
        workers[t].pool = pool;
        workers[t].thread = t;
        if (pthread_create(&workers[t].id, NULL, worker_main, &workers[t]) != 0) {
            /* The barrier needs `threads` arrivals: stand in for the ones that do not exist. */
            atomic_store(&pool->quit, 1);
            atomic_fetch_add(&pool->arrived, threads - t);
            bevel_pool_barrier(pool);
            for (int j = 1; j < t; j++)
                pthread_join(workers[j].id, NULL);
            pthread_cond_destroy(&pool->wake);
            pthread_mutex_destroy(&pool->mutex);
            return -1;
        }
    }
    return 0;
}

void bevel_pool_stop(bevel_pool *pool, bevel_worker *workers)
{
    atomic_store(&pool->quit, 1);
    bevel_pool_barrier(pool);
    for (int t = 1; t < pool->threads; t++)
        pthread_join(workers[t].id, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
}

void bevel_pool_run(bevel_pool *pool)
{
    bevel_pool_barrier(pool);
    pool->work(pool->context, 0);
}
