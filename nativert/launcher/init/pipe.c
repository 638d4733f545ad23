/*
 * The reading end of one of the application's output streams.
 *
 * What an application can make its init do is bounded in bytes stored and in reads a second,
 * however small or large its writes are: what comes faster is dropped and counted.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PIPE_BYTES (256 << 10)
/* What storing a line costs beside its text. */
#define RECORD_BYTES 41
/*
 * Bytes a second that are stored, counted as they are stored: an empty line is 41 bytes. A burst
 * is free. Beyond it the pipe is drained at the price of a read.
 */
#ifndef LOG_RATE
#define LOG_RATE (4 << 20)
#define LOG_BURST (16 << 20)
#endif
/*
 * Wake-ups a second and pipe: a write of one byte costs an application a hundredth of what reading
 * it at once would cost init. Waiting lets the writes gather.
 */
#define READS 250
#define READS_BURST 100
/* How long a piece of a line waits for its end before it is logged as it is. */
#define PARTIAL_NS (200 * NS_PER_MS)

static double least(double a, double b)
{
	return a < b ? a : b;
}

static void earn(struct pipe *pipe)
{
	int64_t now = now_ns(CLOCK_MONOTONIC);
	double elapsed_s = (double)(now - pipe->since) / NS_PER_S;

	pipe->credit = least(LOG_BURST, pipe->credit + elapsed_s * LOG_RATE);
	pipe->reads = least(READS_BURST, pipe->reads + elapsed_s * READS);
	pipe->since = now;
}

int pipe_open(struct pipe *pipe, struct log *log, const char *stream)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC))
		return -1;
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	/* If refused it stays at 64 KiB, and a flood is slower. */
	fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES);
	pipe->log = log;
	pipe->stream = stream;
	pipe->fd = ends[0];
	pipe->writer = ends[1];
	pipe->rest = 0;
	pipe->flush_at = 0;
	pipe->resume_at = 0;
	pipe->since = now_ns(CLOCK_MONOTONIC);
	pipe->credit = LOG_BURST;
	pipe->reads = READS_BURST;
	return 0;
}

/* Log a piece of a line that has no end yet, such as a prompt. */
void pipe_flush(struct pipe *pipe)
{
	if (pipe->rest)
		log_write(pipe->log, pipe->stream, pipe->data, pipe->rest, true);
	pipe->rest = 0;
}

/* Byte by byte: a call of memchr for each line costs more, and most in a flood of empty lines. */
static size_t count_lines(const char *data, size_t length)
{
	size_t lines = 0;

	for (size_t i = 0; i < length; i++)
		lines += data[i] == '\n';
	return lines;
}

/* Take *length* bytes that were read behind the rest. */
static void take(struct pipe *pipe, size_t length)
{
	char *data = pipe->data + pipe->rest;
	size_t all = pipe->rest + length;
	double cost = (double)length;
	char *end;

	cost += (double)count_lines(data, length) * RECORD_BYTES;
	if (cost > pipe->credit) {
		pipe->log->lost_bytes += (int64_t)all;
		pipe->rest = 0;
		return;
	}
	pipe->credit -= cost;
	end = memrchr(data, '\n', length);
	if (end) {
		size_t whole = (size_t)(end + 1 - pipe->data);

		log_write(pipe->log, pipe->stream, pipe->data, whole, false);
		memmove(pipe->data, end + 1, all - whole);
		all -= whole;
	}
	pipe->rest = all;
	if (all > LOG_MAX_LINE)
		pipe_flush(pipe);
	pipe->flush_at = now_ns(CLOCK_MONOTONIC) + PARTIAL_NS;
}

/*
 * Log what is in the pipe now; 0 at end-of-file, -1 if a writer is still there, 1 if there may be
 * more: no more is read than the pipe can hold, so a writer that goes on keeps nobody here.
 */
int pipe_drain(struct pipe *pipe)
{
	for (int i = 0; i < PIPE_BYTES / LOG_CHUNK; i++) {
		ssize_t got = read(pipe->fd, pipe->data + pipe->rest, LOG_CHUNK);

		if (got < 0)
			return -1;
		if (!got) {
			pipe_flush(pipe);
			return 0;
		}
		take(pipe, (size_t)got);
	}
	return 1;
}

/* Read what is there and log it; false at end-of-file. In a flood reading pauses for 1/250 s. */
bool pipe_relay(struct pipe *pipe)
{
	earn(pipe);
	if (pipe->reads < 1) {
		pipe->resume_at = pipe->since + NS_PER_S / READS;
		return true;
	}
	pipe->reads -= 1;
	return pipe_drain(pipe) != 0;
}

/*
 * Log what is left and close, once every process of the instance is dead. No end-of-file is waited
 * for: the application may have passed the writing end to a process of another instance.
 */
void pipe_finish(struct pipe *pipe)
{
	/* As much as an unprivileged process can make a pipe hold, see pipe(7). */
	for (int i = 0; i < (1 << 20) / PIPE_BYTES + 1 && pipe->fd >= 0; i++)
		if (pipe_drain(pipe) != 1)
			break;
	pipe_flush(pipe);
	pipe_close(pipe);
}

void pipe_close(struct pipe *pipe)
{
	close_fd(&pipe->fd);
	close_fd(&pipe->writer);
}
