/* The least that a round trip costs: 64 bytes there and back between two processes, by send and recv in C.

   ping_pong OURS THEIRS TRIPS: the parent runs on core OURS, its child on core THEIRS; prints the median in seconds. */

#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 64 };

static void run_on(int core) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    if (sched_setaffinity(0, sizeof cores, &cores)) exit(3);
}

static void exchange(int connection, char *message, int is_first) {
    if (is_first && send(connection, message, MESSAGE_BYTES, 0) != MESSAGE_BYTES) exit(4);
    if (recv(connection, message, MESSAGE_BYTES, 0) != MESSAGE_BYTES) exit(is_first ? 5 : 0);
    if (!is_first && send(connection, message, MESSAGE_BYTES, 0) != MESSAGE_BYTES) exit(6);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static int compare(const void *left, const void *right) {
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

int main(int count, char **words) {
    if (count != 4) return 2;
    int trips = atoi(words[3]), ends[2];
    char message[MESSAGE_BYTES] = "x";
    double *times = calloc(trips, sizeof *times);
    if (!times || socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 3;
    if (fork() == 0) {
        close(ends[0]);
        run_on(atoi(words[2]));
        for (;;) exchange(ends[1], message, 0);
    }
    close(ends[1]);
    run_on(atoi(words[1]));
    for (int trip = -trips / 10; trip < trips; trip++) {
        double start = now();
        exchange(ends[0], message, 1);
        if (trip >= 0) times[trip] = now() - start;
    }
    close(ends[0]);
    wait(NULL);
    qsort(times, trips, sizeof *times, compare);
    printf("%.9f\n", times[trips / 2]);
    return 0;
}
