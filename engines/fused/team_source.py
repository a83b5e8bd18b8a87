"""C++ of a session's threads on a CPU, which share the work of a call; see `painn_deploy.engines.fused.team`."""

__all__ = ["TEAM"]

TEAM = r"""
#include <pthread.h>

// Threads that sleep come late, which is no sign of cores that others have: who shares a group with them waits so long.
const long long AWAKENING = 1000000;  // ns

// What a call is to do, with the layout of `painn_deploy.engines.fused.team.Job`. Threads share each group where
// `shared`, and else take one after the other, each with a room of its own.
struct Job {
    long long threads, shared, width;
    const int *groups, *sizes;
    float* const* rooms;  // two parts of each thread's memory
    const float* weights;
    const int* numbers;
    const float* displacements;
    const int* reverse;
    const float *mask, *shares;
    float *energies, *forces, *virials, *extra, *spread;
};

// Threads that wait for jobs. A caller sends one, takes part in it, and returns when all are done with it, in one call:
// what interrupts Python meanwhile finds nothing half done.
struct Team {
    pthread_mutex_t lock;
    pthread_cond_t sent, done;
    const Job* job;
    long long jobs;  // that were sent
    int coming, working, ended, next, meeting[3];
};

extern "C" int team_bytes() { return sizeof(Team); }

extern "C" void begin_team(Team* team)
{
    memset(team, 0, sizeof *team);
    pthread_mutex_init(&team->lock, nullptr);
    pthread_cond_init(&team->sent, nullptr);
    pthread_cond_init(&team->done, nullptr);
}

// Look for some time whether a count of threads is down to nothing.
static void look_for(const int* count, long long time)
{
    const long long until = nanoseconds() + time;
    while (__atomic_load_n(count, __ATOMIC_ACQUIRE) && nanoseconds() < until) {}
}

static void take_part(Team* team, const Job* job, int threads, int number)
{
    float* const* room = job->rooms + (job->shared ? 0 : 2 * number);
    auto part = [&](int thread, int threads, const int* groups) {
        evaluate(thread, threads, team->meeting, room[0], room[1], job->sizes, job->weights, job->numbers,
            job->displacements, job->reverse, job->mask, job->shares, (int)job->width, groups, job->energies,
            job->forces, job->virials, job->extra, job->spread);
    };
    if (job->shared) part(number, threads, job->groups);
    else
        for (int mine; (mine = 1 + __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED)) <= job->groups[0];) {
            const int one[] = {1, job->groups[mine], job->groups[mine + 1]};
            part(0, 1, one);
        }
}

// A thread's life, until the team ends.
extern "C" void serve(Team* team, int number)
{
    long long seen = 0;
    pthread_mutex_lock(&team->lock);
    while (true) {
        while (!team->ended && team->jobs == seen) pthread_cond_wait(&team->sent, &team->lock);
        if (team->jobs == seen) break;  // a job that was sent before the end is done
        seen = team->jobs;
        const Job* job = team->job;
        if (!job || number >= job->threads) continue;
        pthread_mutex_unlock(&team->lock);
        __atomic_sub_fetch(&team->coming, 1, __ATOMIC_RELEASE);
        take_part(team, job, (int)job->threads, number);
        pthread_mutex_lock(&team->lock);
        if (!__atomic_sub_fetch(&team->working, 1, __ATOMIC_RELEASE)) pthread_cond_signal(&team->done);
    }
    pthread_mutex_unlock(&team->lock);
}

extern "C" void end_team(Team* team)
{
    pthread_mutex_lock(&team->lock);
    team->ended = 1;
    pthread_cond_broadcast(&team->sent);
    pthread_mutex_unlock(&team->lock);
}

extern "C" void run(Team* team, const Job* job)
{
    team->next = 0;
    pthread_mutex_lock(&team->lock);
    const int threads = team->ended ? 1 : (int)job->threads;
    if (threads > 1) {
        team->job = job;
        team->working = team->coming = threads - 1;
        ++team->jobs;
        pthread_cond_broadcast(&team->sent);
    }
    pthread_mutex_unlock(&team->lock);
    if (threads > 1 && job->shared) look_for(&team->coming, AWAKENING);
    take_part(team, job, threads, 0);
    if (threads == 1) return;
    look_for(&team->working, PATIENCE);
    pthread_mutex_lock(&team->lock);
    while (team->working) pthread_cond_wait(&team->done, &team->lock);
    team->job = nullptr;
    pthread_mutex_unlock(&team->lock);
}
"""
