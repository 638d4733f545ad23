/* System calls that need more than one line. */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* Return when *pid* started, in clock ticks since boot (field 22 of proc_pid_stat(5)), or -1. */
int64_t start_time(pid_t pid)
{
	char path[32] = "/proc/";
	char stat[1024];
	char *at;
	ssize_t got;
	int64_t ticks = 0;
	int fd;

	strcpy(digits(path + strlen(path), (uint64_t)pid, 1), "/stat");
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	got = read(fd, stat, sizeof(stat) - 1);
	close(fd);
	if (got <= 0)
		return -1;
	stat[got] = '\0';
	/* The second field is the name in parentheses and may itself hold blanks and ")". */
	at = strrchr(stat, ')');
	for (int blanks = 0; at && blanks < 20; blanks++)
		at = strchr(at + 1, ' ');
	if (!at)
		return -1;
	while (*++at >= '0' && *at <= '9')
		ticks = 10 * ticks + (*at - '0');
	return ticks;
}

void cloexec(int fd)
{
	fcntl(fd, F_SETFD, FD_CLOEXEC);
}

void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

int send_signal(int pidfd, int number)
{
	return (int)syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0);
}

/* Read a whole file and close it; NULL with errno. */
char *slurp(int fd, size_t *length)
{
	struct stat about;
	char *data;
	ssize_t got;

	if (fstat(fd, &about))
		return NULL;
	data = malloc((size_t)about.st_size + 1);
	if (!data)
		return NULL;
	got = pread(fd, data, (size_t)about.st_size, 0);
	close(fd);
	if (got != about.st_size) {
		errno = EIO;
		free(data);
		return NULL;
	}
	*length = (size_t)got;
	return data;
}
