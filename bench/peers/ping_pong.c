/* The least that a round trip costs: 64 bytes there and back between two processes, by send and recv in C.

   ping_pong serve PATH
   ping_pong call PATH: says `ready`, reads seconds, a line each, measures for so long, and prints the samples as JSON. */

#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 64, CONNECT_TRIES = 1500, CONNECT_PAUSE_MICROSECONDS = 10000 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void serve(const struct sockaddr_un *address) {
    char message[MESSAGE_BYTES];
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (const void *)address, sizeof *address) || listen(listener, 1)) fail("listen");
    int connection = accept(listener, NULL, NULL);
    if (connection < 0) fail("accept");
    while (recv(connection, message, MESSAGE_BYTES, 0) == MESSAGE_BYTES)
        if (send(connection, message, MESSAGE_BYTES, 0) != MESSAGE_BYTES) fail("send");
}

static int dial(const struct sockaddr_un *address) {
    int connection = socket(AF_UNIX, SOCK_STREAM, 0);
    for (int number = 0; number < CONNECT_TRIES; number++) {
        if (!connect(connection, (const void *)address, sizeof *address)) return connection;
        usleep(CONNECT_PAUSE_MICROSECONDS);
    }
    fail("connect");
    return -1;
}

static void measure(int connection, double seconds) {
    char message[MESSAGE_BYTES] = "x";
    size_t count = 0, room = 1 << 16;
    double *samples = malloc(room * sizeof *samples), start = now(), end = start + seconds;
    for (; samples && start < end; start = now()) {
        if (send(connection, message, MESSAGE_BYTES, 0) != MESSAGE_BYTES) fail("send");
        if (recv(connection, message, MESSAGE_BYTES, 0) != MESSAGE_BYTES) fail("recv");
        if (count == room) samples = realloc(samples, (room *= 2) * sizeof *samples);
        if (samples) samples[count++] = now() - start;
    }
    if (!samples) fail("memory");
    for (size_t number = 0; number < count; number++) printf("%s%.9f", number ? "," : "[", samples[number]);
    puts("]");
    free(samples);
}

int main(int count, char **words) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char line[64];
    if (count != 3 || strlen(words[2]) >= sizeof address.sun_path) return 2;
    strcpy(address.sun_path, words[2]);
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    if (!strcmp(words[1], "serve")) {
        serve(&address);
        return 0;
    }
    int connection = dial(&address);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        measure(connection, atof(line));
        fflush(stdout);
    }
    return 0;
}
