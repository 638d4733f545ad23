/*
 * The log relay of init, driven by lines on standard input: the clock stands still until it is
 * told to go on, and write(2) has no more room than it is given. Each line is answered by one:
 * result, bytes lost, bytes of a line that waits, nanoseconds until the pipe is read again.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int64_t monotonic = 1000 * NS_PER_S;
static long long room = -1;
static struct log driven;
static struct pipe output;

int64_t now_ns(clockid_t clock)
{
	struct timespec now;

	if (clock == CLOCK_MONOTONIC)
		return monotonic;
	clock_gettime(clock, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

ssize_t __real_write(int fd, const void *data, size_t length);
ssize_t __wrap_write(int fd, const void *data, size_t length);

ssize_t __wrap_write(int fd, const void *data, size_t length)
{
	ssize_t written;

	if (room < 0 || fd == output.writer)
		return __real_write(fd, data, length);
	if (!room) {
		errno = ENOSPC;
		return -1;
	}
	written = __real_write(fd, data, (long long)length < room ? length : (size_t)room);
	if (written > 0)
		room -= written;
	return written;
}

static size_t bytes_of(const char *hex, char *data)
{
	size_t length = 0;
	unsigned int byte;

	while (sscanf(hex + 2 * length, "%2x", &byte) == 1)
		data[length++] = (char)byte;
	return length;
}

/* Pass *length* bytes through the pipe, a part at a time as it fits. */
static int say(const char *data, size_t length)
{
	int result = -1;

	for (size_t at = 0; at < length; at += 60000) {
		size_t part = length - at < 60000 ? length - at : 60000;

		if (write(output.writer, data + at, part) != (ssize_t)part)
			abort();
		result = pipe_drain(&output);
	}
	return result;
}

static int fill(void)
{
	char line[100];
	int flags = fcntl(output.writer, F_GETFL);
	int written = 0;

	memset(line, 'w', sizeof(line) - 1);
	line[sizeof(line) - 1] = '\n';
	fcntl(output.writer, F_SETPIPE_SZ, 1 << 20);
	fcntl(output.writer, F_SETFL, flags | O_NONBLOCK);
	for (ssize_t got; (got = write(output.writer, line, sizeof(line))) > 0;)
		written += (int)got;
	return written;
}

static long long carry_out(const char *verb, char *rest)
{
	static char data[8 << 20];
	char *end;

	if (!strcmp(verb, "open")) {
		long long max_bytes = strtoll(rest, &end, 10);
		long files = strtol(end, &end, 10);

		log_init(&driven, open(end + 1, O_PATH | O_DIRECTORY | O_CLOEXEC), max_bytes,
			 (int)files);
		return pipe_open(&output, &driven, "stdout");
	}
	if (!strcmp(verb, "say"))
		return say(data, bytes_of(rest, data));
	if (!strcmp(verb, "repeat")) {
		long times = strtol(rest, &end, 10);
		size_t length = bytes_of(end + 1, data);
		size_t all = length * (size_t)times;

		for (size_t at = length; at < all; at++)
			data[at] = data[at - length];
		return say(data, all);
	}
	if (!strcmp(verb, "put")) {
		size_t length = bytes_of(rest, data);

		return write(output.writer, data, length);
	}
	if (!strcmp(verb, "drain"))
		return pipe_drain(&output);
	if (!strcmp(verb, "relay"))
		return pipe_relay(&output);
	if (!strcmp(verb, "flush"))
		pipe_flush(&output);
	else if (!strcmp(verb, "write"))
		log_write(&driven, "stdout", data, bytes_of(rest, data), false);
	else if (!strcmp(verb, "hang-up"))
		close_fd(&output.writer);
	else if (!strcmp(verb, "keep-writer"))
		return dup(output.writer);
	else if (!strcmp(verb, "finish"))
		pipe_finish(&output);
	else if (!strcmp(verb, "fill"))
		return fill();
	else if (!strcmp(verb, "clock"))
		monotonic += strtoll(rest, NULL, 10);
	else if (!strcmp(verb, "room"))
		room = strtoll(rest, NULL, 10);
	else
		abort();
	return 0;
}

int main(void)
{
	char *line = NULL;
	size_t size = 0;
	ssize_t length;

	while ((length = getline(&line, &size, stdin)) > 0) {
		char *verb = line;
		char *rest;
		long long result;
		int64_t waits;

		line[length - 1] = '\0';
		rest = strchr(line, ' ');
		if (rest)
			*rest++ = '\0';
		result = carry_out(verb, rest ? rest : "");
		waits = output.resume_at > monotonic ? output.resume_at - monotonic : 0;
		printf("%lld %lld %zu %lld\n", result, (long long)driven.lost_bytes, output.rest,
		       (long long)waits);
		fflush(stdout);
	}
	free(line);
	return 0;
}
