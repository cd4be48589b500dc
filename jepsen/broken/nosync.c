/* A disk that stops syncing four seconds after the start: each acknowledgement from then on is a lie that a power loss uncovers. */
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int fdatasync(int fd)
{
    static time_t begun;
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    if (!begun)
        begun = now.tv_sec;
    return now.tv_sec - begun < 4 ? syscall(SYS_fdatasync, fd) : 0;
}
