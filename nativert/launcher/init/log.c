/*
 * The application's log files, with a size cap.
 *
 * Each line is stored as Kubernetes' CRI logging format has it,
 * "2026-11-22T08:00:00.000000000Z stdout F text"; P marks a piece without its end of line. What
 * cannot be written is dropped and counted, and the gap is told when there is room again, so that
 * a log neither blocks nor kills the application.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CURRENT "current"
/* "2026-11-22T08:00:00.000000000Z stdout F " and what follows. */
#define HEAD_BYTES 40

/* Whole records that go into the same file by one write. */
struct batch {
	size_t length;
	int64_t payload;
	char data[HEAD_BYTES + LOG_MAX_LINE + LOG_CHUNK + 1];
};

static struct batch batch;

void log_init(struct log *log, int directory, int64_t max_bytes, int files)
{
	*log = (struct log){
		.directory = directory,
		.max_bytes = max_bytes,
		.files = files,
		.fd = -1,
	};
}

static int open_current(struct log *log)
{
	int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
	struct stat about;
	int fd = openat(log->directory, CURRENT, flags, 0640);

	if (fd < 0)
		return -1;
	if (fstat(fd, &about)) {
		close(fd);
		return -1;
	}
	log->fd = fd;
	log->size = about.st_size;
	return 0;
}

static const char *file_name(int number, char buffer[16])
{
	if (!number)
		return CURRENT;
	*digits(buffer, (uint64_t)number, 1) = '\0';
	return buffer;
}

static int rotate(struct log *log)
{
	char older[16], newer[16];

	close_fd(&log->fd);
	/* First, so that no file replaces another: ext4 would write it out at once (auto_da_alloc). */
	if (log->files > 1 && unlinkat(log->directory, file_name(log->files - 1, older), 0) &&
	    errno != ENOENT)
		return -1;
	for (int i = log->files - 1; i > 0; i--)
		if (renameat(log->directory, file_name(i - 1, older), log->directory,
			     file_name(i, newer)) &&
		    errno != ENOENT)
			return -1;
	return log->files == 1 ? unlinkat(log->directory, CURRENT, 0) : 0;
}

/* Write what is in the batch, all of it or nothing. */
static bool flush(struct log *log)
{
	bool done = true;

	if (batch.length) {
		ssize_t written = write(log->fd, batch.data, batch.length);

		done = written == (ssize_t)batch.length;
		if (done)
			log->size += written;
		else if (written > 0 && ftruncate(log->fd, log->size))
			/* What comes next must not be taken for the rest of what was cut. */
			close_fd(&log->fd);
	}
	if (!done)
		log->lost_bytes += batch.payload;
	batch.length = 0;
	batch.payload = 0;
	return done;
}

/* See to it that the next record of *length* bytes has a file to go to. */
static bool make_room(struct log *log, size_t length)
{
	if (batch.length + length > sizeof(batch.data) && !flush(log))
		return false;
	for (;;) {
		if (log->fd < 0 && open_current(log))
			return false;
		if (log->size + (int64_t)(batch.length + length) <= log->max_bytes)
			return true;
		if (batch.length) {
			if (!flush(log))
				return false;
			continue;
		}
		/* A record that is larger than a file gets one of its own. */
		if (!log->size)
			return true;
		if (rotate(log))
			return false;
	}
}

static bool add_record(struct log *log, const char *head, const char *line, size_t length,
		       int64_t payload)
{
	char *to;

	if (!make_room(log, HEAD_BYTES + length + 1))
		return false;
	to = mempcpy(batch.data + batch.length, head, HEAD_BYTES);
	to = mempcpy(to, line, length);
	*to++ = '\n';
	batch.length = (size_t)(to - batch.data);
	batch.payload += payload;
	return true;
}

/*
 * Fill *head* for now. By hand: gmtime_r(3) has libc look for /etc/localtime, which here is a file
 * of the instance. Days to dates as in "chrono-Compatible Low-Level Date Algorithms" (H. Hinnant).
 */
static void make_head(char head[HEAD_BYTES + 1], const char *stream, char tag)
{
	int64_t now = now_ns(CLOCK_REALTIME);
	int64_t seconds = now / NS_PER_S;
	int64_t day = seconds / 86400 + 719468;
	int64_t of_day = seconds % 86400;
	int64_t era = day / 146097;
	int64_t of_era = day % 146097;
	int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	int64_t of_year = of_era - (365 * year + year / 4 - year / 100);
	int64_t month = (5 * of_year + 2) / 153;
	int64_t parts[] = {
		year + era * 400 + (month >= 10),
		month < 10 ? month + 3 : month - 9,
		of_year - (153 * month + 2) / 5 + 1,
		of_day / 3600,
		of_day / 60 % 60,
		of_day % 60,
		now % NS_PER_S,
	};
	static const int widths[] = {4, 2, 2, 2, 2, 2, 9};
	char *at = head;

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		at = digits(at, (uint64_t)parts[i], widths[i]);
		*at++ = "--T::.Z"[i];
	}
	*at++ = ' ';
	at = stpcpy(at, stream);
	*at++ = ' ';
	*at++ = tag;
	*at++ = ' ';
	*at = '\0';
}

static void tell_gap(struct log *log)
{
	static const char before[] = "nativert: ";
	static const char after[] = " bytes of log dropped";
	char head[HEAD_BYTES + 1];
	char line[sizeof(before) + sizeof(after) + 24];
	int64_t lost_bytes = log->lost_bytes;
	char *at = stpcpy(line, before);

	at = digits(at, (uint64_t)(lost_bytes - log->told_bytes), 1);
	at = stpcpy(at, after);
	make_head(head, "stderr", 'F');
	if (add_record(log, head, line, (size_t)(at - line), 0) && flush(log))
		log->told_bytes = lost_bytes;
}

/* Append whole lines of *stream*, or with *partial* a piece of one. */
void log_write(struct log *log, const char *stream, const char *data, size_t length, bool partial)
{
	char head[HEAD_BYTES + 1];
	const char *end = data + length;

	if (log->lost_bytes > log->told_bytes && !partial)
		tell_gap(log);
	make_head(head, stream, partial ? 'P' : 'F');
	while (data < end) {
		const char *newline = partial ? NULL : memchr(data, '\n', (size_t)(end - data));
		const char *next = newline ? newline + 1 : end;

		if (!add_record(log, head, data, (size_t)((newline ? newline : end) - data),
				next - data)) {
			/* A full disk: the application goes on, the gap is told later. */
			log->lost_bytes += end - data + batch.payload;
			batch.length = 0;
			batch.payload = 0;
			return;
		}
		data = next;
	}
	flush(log);
}
