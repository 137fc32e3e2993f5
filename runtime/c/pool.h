/* pool.h: a fixed team of threads that run the same steps together and meet at a barrier after each. */
#ifndef BEVEL_POOL_H
#define BEVEL_POOL_H

#include <pthread.h>
#include <stdatomic.h>

typedef struct bevel_pool {
    void (*work)(void *context, int thread);
    void *context;
    int threads;
    atomic_int arrived;
    atomic_uint phase;
    atomic_int sleepers;
    atomic_int quit;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} bevel_pool;

typedef struct bevel_worker {
    bevel_pool *pool;
    pthread_t id;
    int thread;
} bevel_worker;

/* Start threads 1..threads-1 in workers[1..threads); thread 0 is the caller's. Returns 0, or -1 with nothing left running. */
int bevel_pool_start(bevel_pool *pool, bevel_worker *workers, int threads, void (*work)(void *, int), void *context);
void bevel_pool_stop(bevel_pool *pool, bevel_worker *workers);

/* Call work(context, t) on every thread t and return when all of them left it. `work` must end with a barrier. */
void bevel_pool_run(bevel_pool *pool);

/* Wait until every thread of the pool is here. */
void bevel_pool_barrier(bevel_pool *pool);

#endif
