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
    kind       VARCHAR NOT NULL,          -- peaks, relaxed, proteins, biotypes, experiments, blacklist, synonyms, loci, tracks, families, trunk, negatives
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

CREATE TABLE data.gene_domains (           -- DNA-binding domains, where a table of them was imported
    gene      VARCHAR PRIMARY KEY,
    domain    VARCHAR NOT NULL,
    source_id INTEGER NOT NULL
);
CREATE TABLE data.trunk_training (         -- what trunks of others were trained on, from tables of their tracks
    trunk     VARCHAR NOT NULL,
    kind      VARCHAR NOT NULL,            -- factors (genes), biotypes
    name      VARCHAR NOT NULL,
    source_id INTEGER NOT NULL,
    PRIMARY KEY (trunk, kind, name)
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
CREATE TABLE data.relaxed_peaks (          -- lenient calls, and peaks whose summit lies in N: no peak there means ambiguous
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
CREATE TABLE data.listed_negatives (       -- loci that somebody listed as unbound
    experiment_id INTEGER NOT NULL,        -- -1: in every experiment
    chrom_id      SMALLINT NOT NULL,
    start_bp      BIGINT NOT NULL,
    end_bp        BIGINT NOT NULL,
    source_id     INTEGER NOT NULL
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
-- Every view and every column of it has a comment: `tfbind sql STORE --schema` prints them.
CREATE VIEW chromosomes AS SELECT chrom, length_bp, n_bp FROM data.chromosomes ORDER BY chrom_id;
COMMENT ON VIEW chromosomes IS 'The chromosomes of the genome, in its own order.';
COMMENT ON COLUMN chromosomes.chrom IS 'Name, as the genome''s FASTA spells it.';
COMMENT ON COLUMN chromosomes.length_bp IS 'Length in bp.';
COMMENT ON COLUMN chromosomes.n_bp IS 'How many of its bases are N or anything else but A, C, G, T.';

CREATE VIEW windows AS
    SELECT window_id, chrom, start_bp AS start, end_bp AS "end", n_fraction, gc_fraction
    FROM data.windows JOIN data.chromosomes USING (chrom_id);
COMMENT ON VIEW windows IS 'The windows that tile the genome: one row of every array of embeddings each.';
COMMENT ON COLUMN windows.window_id IS 'Number of the window through the whole genome, from 0; the row in the arrays.';
COMMENT ON COLUMN windows.chrom IS 'Chromosome.';
COMMENT ON COLUMN windows.start IS 'First base of the window''s kept bins, 0-based.';
COMMENT ON COLUMN windows."end" IS 'One past the last base of the kept bins, cut at the chromosome''s end.';
COMMENT ON COLUMN windows.n_fraction IS 'Share of its bases that are N.';
COMMENT ON COLUMN windows.gc_fraction IS 'Share of G and C among its bases that are not N; NULL where all are N.';

CREATE VIEW bins AS
    SELECT w.window_id, r.bin, c.chrom, w.start_bp + r.bin * r.bin_bp AS start,
           least(w.start_bp + (r.bin + 1) * r.bin_bp, c.length_bp) AS "end"
    FROM data.windows AS w
    JOIN data.chromosomes AS c USING (chrom_id)
    CROSS JOIN (SELECT unnest(range((value ->> '$.n_bins')::INTEGER))::SMALLINT AS bin,
                       (value ->> '$.bin_bp')::BIGINT AS bin_bp
                FROM data.meta WHERE key = 'grid') AS r
    WHERE w.start_bp + r.bin * r.bin_bp < c.length_bp;
COMMENT ON VIEW bins IS 'The bins of the genome, bound or not: what a row of a selection is made of. Join peaks by window_id and bin.';
COMMENT ON COLUMN bins.window_id IS 'Window that the bin lies in.';
COMMENT ON COLUMN bins.bin IS 'Number of the bin in its window, from 0.';
COMMENT ON COLUMN bins.chrom IS 'Chromosome.';
COMMENT ON COLUMN bins.start IS 'First base, 0-based.';
COMMENT ON COLUMN bins."end" IS 'One past the last base, cut at the chromosome''s end.';

CREATE VIEW proteins AS SELECT symbol, accession, species, length_aa, sequence FROM data.proteins;
COMMENT ON VIEW proteins IS 'The proteins that were imported: one per gene symbol.';
COMMENT ON COLUMN proteins.symbol IS 'Gene symbol, as the proteins'' own file spells it.';
COMMENT ON COLUMN proteins.accession IS 'UniProt accession, or the file''s own name for it.';
COMMENT ON COLUMN proteins.species IS 'Species, where the file says so.';
COMMENT ON COLUMN proteins.length_aa IS 'Length in amino acids.';
COMMENT ON COLUMN proteins.sequence IS 'Amino acids, one letter each.';

CREATE VIEW factors AS
    SELECT f.factor, f.genes, f.has_protein, f.family, sum(p.length_aa) AS length_aa
    FROM data.factors f
    LEFT JOIN data.factor_subunits s USING (factor_id)
    LEFT JOIN data.proteins p USING (protein_id)
    GROUP BY ALL;
COMMENT ON VIEW factors IS 'Transcription factors and complexes that experiments were made of.';
COMMENT ON COLUMN factors.factor IS 'Name: the gene symbols of its subunits, joined by hyphens.';
COMMENT ON COLUMN factors.genes IS 'Gene symbols of its subunits, a list.';
COMMENT ON COLUMN factors.has_protein IS 'Whether every subunit has a sequence.';
COMMENT ON COLUMN factors.family IS 'Family, by sequence or DNA-binding domain, where known.';
COMMENT ON COLUMN factors.length_aa IS 'Amino acids of all its subunits together.';

CREATE VIEW biotypes AS
    SELECT b.biotype, b.base_biotype, b.treatment, c.text AS context, b.metadata
    FROM data.biotypes b LEFT JOIN data.contexts c USING (biotype_id);
COMMENT ON VIEW biotypes IS 'Cell types, tissues and cell lines, each treatment on its own.';
COMMENT ON COLUMN biotypes.biotype IS 'Name with treatment, as in the experiments'' names.';
COMMENT ON COLUMN biotypes.base_biotype IS 'Name without treatment.';
COMMENT ON COLUMN biotypes.treatment IS 'Treatment, NULL where there was none.';
COMMENT ON COLUMN biotypes.context IS 'The text that the text model reads.';
COMMENT ON COLUMN biotypes.metadata IS 'Further columns of the imported table, as JSON.';

CREATE VIEW experiments AS
    SELECT e.experiment, e.accession, f.factor, b.biotype, b.base_biotype, b.treatment, e.modification, e.peaks_nr,
           coalesce(p.n_peaks, 0) AS n_peaks, f.has_protein, e.assembly, e.metadata, e.experiment_id
    FROM data.experiments e
    JOIN data.factors f USING (factor_id)
    JOIN data.biotypes b USING (biotype_id)
    LEFT JOIN (SELECT experiment_id, count(*) AS n_peaks FROM data.peaks GROUP BY experiment_id) AS p
        USING (experiment_id);
COMMENT ON VIEW experiments IS 'ChIP-seq results: one factor in one cell type from one accession.';
COMMENT ON COLUMN experiments.experiment IS 'Full name, ACCESSION.FACTOR.BIOTYPE, as in the peak file.';
COMMENT ON COLUMN experiments.accession IS 'Accession of the study, such as GSE12345.';
COMMENT ON COLUMN experiments.factor IS 'Factor, by gene symbols.';
COMMENT ON COLUMN experiments.biotype IS 'Cell type with treatment.';
COMMENT ON COLUMN experiments.base_biotype IS 'Cell type without treatment.';
COMMENT ON COLUMN experiments.treatment IS 'Treatment, NULL where there was none.';
COMMENT ON COLUMN experiments.modification IS 'Modification of the factor''s protein, such as K4ac; NULL for none.';
COMMENT ON COLUMN experiments.peaks_nr IS 'Peaks genome-wide as its authors count them; NULL where unknown.';
COMMENT ON COLUMN experiments.n_peaks IS 'Peaks that this store holds.';
COMMENT ON COLUMN experiments.has_protein IS 'Whether the factor''s sequence is known.';
COMMENT ON COLUMN experiments.assembly IS 'Assembly of the genome, where the metadata say so.';
COMMENT ON COLUMN experiments.metadata IS 'Further columns of imported tables, as JSON.';
COMMENT ON COLUMN experiments.experiment_id IS 'Number of the experiment in this store.';

CREATE VIEW peaks AS
    SELECT c.chrom, p.start_bp AS start, p.end_bp AS "end", e.experiment, e.accession, f.factor, b.biotype,
           e.modification, p.score, p.summit_bp AS summit, p.window_id, p.bin, b.base_biotype, b.treatment,
           p.experiment_id
    FROM data.peaks p
    JOIN data.chromosomes c USING (chrom_id)
    JOIN data.experiments e USING (experiment_id)
    JOIN data.factors f USING (factor_id)
    JOIN data.biotypes b USING (biotype_id);
COMMENT ON VIEW peaks IS 'Called peaks of all experiments: where a factor was found on the genome.';
COMMENT ON COLUMN peaks.chrom IS 'Chromosome.';
COMMENT ON COLUMN peaks.start IS 'First base, 0-based.';
COMMENT ON COLUMN peaks."end" IS 'One past the last base.';
COMMENT ON COLUMN peaks.experiment IS 'Experiment, by its full name.';
COMMENT ON COLUMN peaks.accession IS 'Accession of the study.';
COMMENT ON COLUMN peaks.factor IS 'Factor, by gene symbols.';
COMMENT ON COLUMN peaks.biotype IS 'Cell type with treatment.';
COMMENT ON COLUMN peaks.modification IS 'Modification of the factor''s protein; NULL for none.';
COMMENT ON COLUMN peaks.score IS 'Score or signal, as the peak file gives it.';
COMMENT ON COLUMN peaks.summit IS 'Position of the summit, 0-based; the midpoint where the file names none.';
COMMENT ON COLUMN peaks.window_id IS 'Window that holds the summit.';
COMMENT ON COLUMN peaks.bin IS 'Bin of that window that holds the summit.';
COMMENT ON COLUMN peaks.base_biotype IS 'Cell type without treatment.';
COMMENT ON COLUMN peaks.treatment IS 'Treatment, NULL where there was none.';
COMMENT ON COLUMN peaks.experiment_id IS 'Number of the experiment in this store; filtering by it is fastest.';

CREATE VIEW blacklist AS
    SELECT chrom, start_bp AS start, end_bp AS "end", name FROM data.exclusions JOIN data.chromosomes USING (chrom_id);
COMMENT ON VIEW blacklist IS 'Loci that are neither bound nor unbound.';
COMMENT ON COLUMN blacklist.chrom IS 'Chromosome.';
COMMENT ON COLUMN blacklist.start IS 'First base, 0-based.';
COMMENT ON COLUMN blacklist."end" IS 'One past the last base.';
COMMENT ON COLUMN blacklist.name IS 'Name of the list.';

CREATE VIEW loci AS
    SELECT set_name, chrom, start_bp AS start, end_bp AS "end", name, split
    FROM data.loci JOIN data.chromosomes USING (chrom_id);
COMMENT ON VIEW loci IS 'Named sets of loci, to select by.';
COMMENT ON COLUMN loci.set_name IS 'Name of the set.';
COMMENT ON COLUMN loci.chrom IS 'Chromosome.';
COMMENT ON COLUMN loci.start IS 'First base, 0-based.';
COMMENT ON COLUMN loci."end" IS 'One past the last base.';
COMMENT ON COLUMN loci.name IS 'Name of the locus, where the file gives one.';
COMMENT ON COLUMN loci.split IS 'train, valid or test, where the file says so.';

CREATE VIEW tracks AS
    SELECT t.track, t.role, t.array_name, t.row_index, e.experiment, f.factor, b.biotype, t.assay, t.assembly, t.n_bins,
           t.metadata
    FROM data.tracks t
    LEFT JOIN data.experiments e USING (experiment_id)
    LEFT JOIN data.factors f USING (factor_id)
    LEFT JOIN data.biotypes b ON b.biotype_id = t.biotype_id;
COMMENT ON VIEW tracks IS 'Signals along the genome, binned on the store''s grid: labels to predict, or inputs.';
COMMENT ON COLUMN tracks.track IS 'Name of the track.';
COMMENT ON COLUMN tracks.role IS 'label (to be predicted) or signal (an input).';
COMMENT ON COLUMN tracks.array_name IS 'Array that holds its values.';
COMMENT ON COLUMN tracks.row_index IS 'Row of that array.';
COMMENT ON COLUMN tracks.experiment IS 'Experiment, by its full name, where known.';
COMMENT ON COLUMN tracks.factor IS 'Factor, by gene symbols, where known.';
COMMENT ON COLUMN tracks.biotype IS 'Cell type with treatment, where known.';
COMMENT ON COLUMN tracks.assay IS 'Assay, such as ATAC-seq.';
COMMENT ON COLUMN tracks.assembly IS 'Assembly of the genome that the file was made for.';
COMMENT ON COLUMN tracks.n_bins IS 'Bins that were measured.';
COMMENT ON COLUMN tracks.metadata IS 'Further facts, as JSON.';

CREATE VIEW imports AS SELECT kind, path, rows_read, rows_kept, dropped, sha256 FROM data.sources ORDER BY source_id;
COMMENT ON VIEW imports IS 'Files that this catalog was filled from, in their order.';
COMMENT ON COLUMN imports.kind IS 'What was imported: peaks, relaxed, proteins, biotypes, experiments, blacklist, loci.';
COMMENT ON COLUMN imports.path IS 'The file, where it lay at the time.';
COMMENT ON COLUMN imports.rows_read IS 'Rows in the file.';
COMMENT ON COLUMN imports.rows_kept IS 'Rows that were taken.';
COMMENT ON COLUMN imports.dropped IS 'Rows left out by cause, as JSON.';
COMMENT ON COLUMN imports.sha256 IS 'Hash of the file''s bytes.';
