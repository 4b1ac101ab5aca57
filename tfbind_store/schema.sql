-- The catalog: what a store knows about its genome, factors, biotypes, experiments and arrays.
--
-- Base tables live in the schema `data` and carry integer ids; the views in `main` join them into what a biologist
-- writes queries against. All coordinates are bp, 0-based, half-open. Ids are given in a defined order at import, so
-- that the same inputs give the same catalog. This file is schema version 1; later versions are numbered migrations.

CREATE SCHEMA IF NOT EXISTS data;

CREATE TABLE data.meta (
    key   VARCHAR PRIMARY KEY,
    value VARCHAR NOT NULL
);

-- genome ---------------------------------------------------------------------------------------------------------
CREATE TABLE data.chromosomes (
    chrom_id   SMALLINT PRIMARY KEY,      -- place in the genome
    chrom      VARCHAR NOT NULL UNIQUE,   -- the store's own name
    length_bp  BIGINT NOT NULL,
    md5        VARCHAR NOT NULL,          -- of the upper-case sequence, everything but ACGT as N
    n_bp       BIGINT NOT NULL,           -- bases that are not A, C, G or T
    first_window INTEGER NOT NULL         -- id of the first window on the store's grid
);
CREATE TABLE data.chromosome_aliases (
    alias    VARCHAR PRIMARY KEY,
    chrom_id SMALLINT NOT NULL
);
CREATE TABLE data.windows (
    window_id   INTEGER PRIMARY KEY,
    chrom_id    SMALLINT NOT NULL,
    start_bp    BIGINT NOT NULL,          -- of the kept bins
    end_bp      BIGINT NOT NULL,          -- of the kept bins, cut at the chromosome's end
    n_fraction  FLOAT NOT NULL,           -- of the kept bins' bases
    gc_fraction FLOAT                     -- G + C among A, C, G, T; NULL where all are N
);

-- where rows came from -------------------------------------------------------------------------------------------
CREATE TABLE data.sources (
    source_id  INTEGER PRIMARY KEY,
    kind       VARCHAR NOT NULL,          -- peaks, relaxed, proteins, biotypes, experiments, blacklist, synonyms, loci, tracks
    path       VARCHAR NOT NULL,          -- as given, made absolute
    sha256     VARCHAR NOT NULL,
    size_bytes BIGINT NOT NULL,
    options    VARCHAR NOT NULL,          -- canonical JSON of the import's options
    rows_read  BIGINT NOT NULL,
    rows_kept  BIGINT NOT NULL,
    dropped    VARCHAR NOT NULL           -- JSON {cause: rows}
);
CREATE TABLE data.source_chromosomes (    -- chromosomes on which a peak source is taken as having looked
    source_id INTEGER NOT NULL,
    chrom_id  SMALLINT NOT NULL,
    PRIMARY KEY (source_id, chrom_id)
);

-- factors --------------------------------------------------------------------------------------------------------
CREATE TABLE data.proteins (
    protein_id  INTEGER PRIMARY KEY,
    symbol      VARCHAR NOT NULL,         -- gene symbol, as the proteins' own file spells it
    accession   VARCHAR,                  -- UniProt accession or the file's own id
    species     VARCHAR,
    reviewed    BOOLEAN,
    sequence    VARCHAR NOT NULL,         -- one letter a residue, upper case
    sha256      VARCHAR NOT NULL,         -- of the sequence
    length_aa   INTEGER NOT NULL,
    chosen_by   VARCHAR NOT NULL,         -- the rule that chose this one among the symbol's entries
    source_id   INTEGER NOT NULL
);
CREATE TABLE data.synonyms (
    synonym VARCHAR NOT NULL,
    symbol  VARCHAR NOT NULL,
    PRIMARY KEY (synonym, symbol)
);
CREATE TABLE data.factors (
    factor_id   INTEGER PRIMARY KEY,
    factor      VARCHAR NOT NULL UNIQUE,  -- the genes, joined by '-'; a modification is the experiment's
    genes       VARCHAR[] NOT NULL,       -- gene symbols of the subunits, in order
    has_protein BOOLEAN NOT NULL,         -- every subunit has a sequence
    family      VARCHAR                   -- identity cluster or DNA-binding domain, where known
);
CREATE TABLE data.factor_subunits (
    factor_id  INTEGER NOT NULL,
    position   SMALLINT NOT NULL,
    gene       VARCHAR NOT NULL,
    protein_id INTEGER,                   -- NULL where the subunit has no sequence
    PRIMARY KEY (factor_id, position)
);

-- biotypes and contexts ------------------------------------------------------------------------------------------
CREATE TABLE data.biotypes (
    biotype_id   INTEGER PRIMARY KEY,
    biotype      VARCHAR NOT NULL UNIQUE, -- with treatment, as in the peaks' names
    base_biotype VARCHAR NOT NULL,        -- without treatment
    treatment    VARCHAR,
    metadata     VARCHAR NOT NULL         -- JSON {column: text}
);
CREATE TABLE data.contexts (
    context_id INTEGER PRIMARY KEY,
    biotype_id INTEGER NOT NULL UNIQUE,
    text       VARCHAR NOT NULL,          -- exactly what the text encoder reads
    template   VARCHAR NOT NULL
);

-- experiments and peaks ------------------------------------------------------------------------------------------
CREATE TABLE data.experiments (
    experiment_id INTEGER PRIMARY KEY,
    experiment    VARCHAR NOT NULL UNIQUE, -- accession.factor.biotype, verbatim
    accession     VARCHAR NOT NULL,
    factor_id     INTEGER NOT NULL,
    biotype_id    INTEGER NOT NULL,
    modification  VARCHAR,                 -- of SOX2_K4ac: K4ac
    peaks_nr      INTEGER,                 -- peaks genome-wide as its authors count them; NULL where unknown
    assembly      VARCHAR,
    metadata      VARCHAR NOT NULL         -- JSON {column: text}
);
CREATE TABLE data.experiment_sources (     -- an experiment is labelled on the chromosomes of its peak sources
    experiment_id INTEGER NOT NULL,
    source_id     INTEGER NOT NULL,
    PRIMARY KEY (experiment_id, source_id)
);
CREATE TABLE data.peaks (                  -- sorted by experiment_id, window_id, bin
    experiment_id INTEGER NOT NULL,
    chrom_id      SMALLINT NOT NULL,
    start_bp      BIGINT NOT NULL,
    end_bp        BIGINT NOT NULL,
    summit_bp     BIGINT NOT NULL,         -- the called summit, else the midpoint
    score         FLOAT,
    window_id     INTEGER NOT NULL,        -- that hold the summit
    bin           SMALLINT NOT NULL,
    source_id     INTEGER NOT NULL
);
CREATE TABLE data.relaxed_peaks (          -- lenient calls: near a peak but no peak means ambiguous
    experiment_id INTEGER NOT NULL,
    chrom_id      SMALLINT NOT NULL,
    start_bp      BIGINT NOT NULL,
    end_bp        BIGINT NOT NULL,
    source_id     INTEGER NOT NULL
);
CREATE TABLE data.exclusions (             -- blacklists: neither positive nor negative
    name      VARCHAR NOT NULL,
    chrom_id  SMALLINT NOT NULL,
    start_bp  BIGINT NOT NULL,
    end_bp    BIGINT NOT NULL,
    source_id INTEGER NOT NULL
);
CREATE TABLE data.loci (
    set_name  VARCHAR NOT NULL,
    chrom_id  SMALLINT NOT NULL,
    start_bp  BIGINT NOT NULL,
    end_bp    BIGINT NOT NULL,
    name      VARCHAR,
    split     VARCHAR,
    source_id INTEGER NOT NULL
);
CREATE TABLE data.tracks (                 -- rows of tracks/<name>.zarr (labels) and signals/<name>.zarr (inputs)
    array_name    VARCHAR NOT NULL,
    row_index     INTEGER NOT NULL,
    track         VARCHAR NOT NULL,
    role          VARCHAR NOT NULL,        -- label or signal
    experiment_id INTEGER,                 -- NULL of a track that is of no factor, such as ATAC
    biotype_id    INTEGER,
    assay         VARCHAR,
    assembly      VARCHAR,
    n_bins        BIGINT NOT NULL,         -- that have a number
    metadata      VARCHAR NOT NULL,        -- JSON {column: text}
    source_id     INTEGER NOT NULL,
    PRIMARY KEY (array_name, row_index)
);

-- arrays ---------------------------------------------------------------------------------------------------------
CREATE TABLE data.arrays (
    array_name  VARCHAR PRIMARY KEY,       -- path inside the store without .zarr, e.g. embeddings/windows
    kind        VARCHAR NOT NULL,          -- windows, proteins, contexts, tracks, signals
    fingerprint VARCHAR NOT NULL,
    spec        VARCHAR NOT NULL,          -- canonical JSON
    shape       BIGINT[] NOT NULL,         -- rows first
    shard_rows  INTEGER NOT NULL           -- with spec and shape, enough to write a lost zarr.json again
);
CREATE TABLE data.shards (                 -- an index of the receipts, which are the truth
    array_name VARCHAR NOT NULL,
    shard_id   INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    n_ok       INTEGER NOT NULL,
    n_all_n    INTEGER NOT NULL,
    n_failed   INTEGER NOT NULL,
    n_not_asked INTEGER NOT NULL,
    size_bytes BIGINT NOT NULL,
    xxh3_128   VARCHAR NOT NULL,
    PRIMARY KEY (array_name, shard_id)
);
CREATE TABLE data.protein_rows (           -- where a protein's residues lie in proteins/<encoder>.zarr
    array_name VARCHAR NOT NULL,
    sha256     VARCHAR NOT NULL,           -- of the sequence
    first_row  BIGINT NOT NULL,
    n_rows     INTEGER NOT NULL,
    truncated  BOOLEAN NOT NULL,
    PRIMARY KEY (array_name, sha256)
);
CREATE TABLE data.context_rows (
    array_name VARCHAR NOT NULL,
    sha256     VARCHAR NOT NULL,           -- of the text
    row_index  BIGINT NOT NULL,
    truncated  BOOLEAN NOT NULL,
    PRIMARY KEY (array_name, sha256)
);

-- indexes of what selections/ and runs/ say about themselves --------------------------------------------------------
CREATE TABLE data.selections (
    selection   VARCHAR PRIMARY KEY,
    description VARCHAR NOT NULL            -- selection.json
);
CREATE TABLE data.runs (
    run         VARCHAR PRIMARY KEY,
    description VARCHAR NOT NULL            -- the checkpoint's header as JSON
);

-- views: what people query ------------------------------------------------------------------------------------------
CREATE VIEW chromosomes AS SELECT chrom, length_bp, n_bp FROM data.chromosomes ORDER BY chrom_id;
CREATE VIEW windows AS
    SELECT window_id, chrom, start_bp AS start, end_bp AS "end", n_fraction, gc_fraction
    FROM data.windows JOIN data.chromosomes USING (chrom_id);
CREATE VIEW proteins AS SELECT symbol, accession, species, length_aa, sequence FROM data.proteins;
CREATE VIEW factors AS
    SELECT f.factor, f.genes, f.has_protein, f.family, sum(p.length_aa) AS length_aa
    FROM data.factors f
    LEFT JOIN data.factor_subunits s USING (factor_id)
    LEFT JOIN data.proteins p USING (protein_id)
    GROUP BY ALL;
CREATE VIEW biotypes AS
    SELECT b.biotype, b.base_biotype, b.treatment, c.text AS context, b.metadata
    FROM data.biotypes b LEFT JOIN data.contexts c USING (biotype_id);
CREATE VIEW experiments AS
    SELECT e.experiment, e.accession, f.factor, b.biotype, b.base_biotype, b.treatment, e.modification, e.peaks_nr,
           count(p.experiment_id) AS n_peaks, f.has_protein, e.assembly, e.metadata
    FROM data.experiments e
    JOIN data.factors f USING (factor_id)
    JOIN data.biotypes b USING (biotype_id)
    LEFT JOIN data.peaks p USING (experiment_id)
    GROUP BY ALL;
CREATE VIEW peaks AS
    SELECT c.chrom, p.start_bp AS start, p.end_bp AS "end", e.experiment, e.accession, f.factor, b.biotype,
           e.modification, p.score, p.summit_bp AS summit, p.window_id, p.bin
    FROM data.peaks p
    JOIN data.chromosomes c USING (chrom_id)
    JOIN data.experiments e USING (experiment_id)
    JOIN data.factors f USING (factor_id)
    JOIN data.biotypes b USING (biotype_id);
CREATE VIEW blacklist AS
    SELECT chrom, start_bp AS start, end_bp AS "end", name FROM data.exclusions JOIN data.chromosomes USING (chrom_id);
CREATE VIEW loci AS
    SELECT set_name, chrom, start_bp AS start, end_bp AS "end", name, split
    FROM data.loci JOIN data.chromosomes USING (chrom_id);
CREATE VIEW tracks AS
    SELECT t.track, t.role, t.array_name, t.row_index, e.experiment, f.factor, b.biotype, t.assay, t.assembly, t.n_bins,
           t.metadata
    FROM data.tracks t
    LEFT JOIN data.experiments e USING (experiment_id)
    LEFT JOIN data.factors f USING (factor_id)
    LEFT JOIN data.biotypes b ON b.biotype_id = t.biotype_id;
CREATE VIEW imports AS SELECT kind, path, rows_read, rows_kept, dropped, sha256 FROM data.sources ORDER BY source_id;
